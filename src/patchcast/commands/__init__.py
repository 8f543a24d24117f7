"""What each command of `patchcast` does, one a file; imported only when it is called."""
