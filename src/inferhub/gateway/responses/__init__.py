"""Stored responses: what `POST /v1/responses` keeps, and what `/v1/responses/{id}` gives back."""
