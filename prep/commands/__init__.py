"""The commands of imagenet-prep: options in, one call, the result out."""
