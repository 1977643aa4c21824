"""SuffixDecoding: copies what most often followed the text's end, here or in earlier responses."""
