"""Where tasks run: one small interface (`base`) and the backends that implement it."""
