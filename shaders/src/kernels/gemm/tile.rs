//! Register tiles.
