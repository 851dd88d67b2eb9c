"""The write-ahead file of the ledger: begin before dispatch, end after, drained to the stores behind it.

`slots.open_spool` → `spool.Spool` (written by the meter ring) → `drain.Drain` (run by assembly).
"""
