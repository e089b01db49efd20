"""Judges behind a chat endpoint: vision-language models that are asked by a template."""
