"""The encoder-only reader, which marks the answer in its passages (the paper's BTR-BERT).

tokenizer, examples: questions and passages as token ids; encoder, code: the layers of a BERT cut in two, and bits
between them; spans: answers; forward: the forms of the reader, in training and from a store; reader: its directory;
calibration: what its bits are restored with; stored, answering: answers, from a store or without one.
"""
