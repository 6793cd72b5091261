"""The report of a comparison: tables, statistics, sentences, pictures, pages."""
