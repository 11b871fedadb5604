"""From a benchmark's file to a verdict on an answer: problems, prompt styles, programs, the judge, pass@k."""
