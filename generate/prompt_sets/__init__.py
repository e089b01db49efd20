"""Sets of prompts by name: where they are published, a verified copy in the cache, and what is in them."""
