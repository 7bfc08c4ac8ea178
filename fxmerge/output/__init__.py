"""What leaves: the merged model, its ONNX file and other formats, and how it is run and measured."""
