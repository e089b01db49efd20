"""Web pages for people: `prefloop label` to label pairs, `prefloop browse` to look through them."""
