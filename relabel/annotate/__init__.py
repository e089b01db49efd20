"""Pages for people: `prefloop label`, on which they decide pairs, and `prefloop browse`, on which they look through them."""
