//! Tests that use Updraft as its clients do; everything is under `tests/`.
