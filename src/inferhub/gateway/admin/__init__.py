"""One router per noun; every route needs the role `admin`."""
