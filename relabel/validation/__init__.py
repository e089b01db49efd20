"""How well scorers predict labels."""
