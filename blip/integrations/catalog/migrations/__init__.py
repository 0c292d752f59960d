"""Migrations of the catalogue, one file a revision, numbered in order."""
