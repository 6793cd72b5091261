"""What the results say: tables, tests, sentences, pictures, pages."""
