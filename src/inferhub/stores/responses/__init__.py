"""Answers that were kept for their tenants, to be read again and to be continued."""
