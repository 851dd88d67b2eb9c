"""Generated from `proto/inferhub/worker/v1/worker.proto` by `make proto`; never edited by hand."""
