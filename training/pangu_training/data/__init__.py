"""From problems in words to ranked pairs: the data's verbs and the files between them."""
