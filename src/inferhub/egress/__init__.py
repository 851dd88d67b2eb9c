"""Fetches what a tenant or a request names: the one way out for a URL that this server did not choose.

Used by whoever holds such a URL: webhooks, pictures and files named by address. Nothing else in InferHub
opens one. It never reaches an address inside the network that the operator has not allowed.
"""

from inferhub.egress.fetcher import Fetched, Fetcher, FetchLimits
from inferhub.egress.target import Target, check_url

__all__ = ["FetchLimits", "Fetched", "Fetcher", "Target", "check_url"]
