"""Tools to test InferHub and its plug-ins with: real processes and reference engines, no mocks."""
