"""Where answers go: tables, subtitles, embeddings, the annotated video."""
