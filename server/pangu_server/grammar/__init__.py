"""Structured output: answers that a grammar allows, by llguidance. A grammar is checked in a process of its own."""
