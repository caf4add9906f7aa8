"""The operators as torch sees them: a module for each family, with fakes and autograd."""
