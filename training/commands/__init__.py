"""The commands of resnet: options in, one call, the result out. They may ask prep, too."""
