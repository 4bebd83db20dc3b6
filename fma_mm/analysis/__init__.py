"""Measuring and looking into models."""
