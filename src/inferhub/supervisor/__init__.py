"""F6: several gateway processes behind one listening socket and one `/metrics`; `service` is the way in.

The CLI runs it beside `assembly`, which it never imports: the processes that it starts do.
"""
