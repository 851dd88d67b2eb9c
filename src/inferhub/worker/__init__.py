"""F5: where models live. A worker loads them, queues calls for them and pumps their answers out."""
