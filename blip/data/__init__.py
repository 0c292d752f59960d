"""From raw collections to batches: sources, ingestion, dataset versions, text, images, the loader, the demo world."""
