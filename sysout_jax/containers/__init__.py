"""Other people's file formats as containers of tensors and fields: bounds are checked before anything is believed, nothing is executed."""
