"""Who is in the fleet and what gateways want of it, where several orchestrators share that."""
