"""CTranslate2's library as a backend."""
