"""Language models of fairseq: recipes, trained models, what they have learned and what they cost."""
