"""What a person sees of a run: reader, charts, samples, comparison, page."""
