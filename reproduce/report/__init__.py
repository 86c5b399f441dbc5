"""What is made of finished runs: tables, claims, statistics, figures, pages."""
