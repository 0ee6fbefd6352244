"""Where predictions go: tables, subtitles, embeddings, the annotated video."""
