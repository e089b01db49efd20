"""Everything that knows diffusers: which model a name means, what it was trained on, and how it is loaded."""
