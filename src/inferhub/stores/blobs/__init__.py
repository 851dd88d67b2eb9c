"""Files that answers point to, such as pictures: where they lie, for how long, and how much of them."""
