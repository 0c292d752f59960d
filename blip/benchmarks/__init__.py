"""The paper's benchmarks on their official files: one module each, with its reader, its protocol and its result."""
