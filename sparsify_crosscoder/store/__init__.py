"""From activations to shuffled batches, by way of the disk. In the order in which pairs pass:

stored_rows, shards, shard_notes         pairs in files, each of them checked
part_windows, plan, manifest, beginning  what a store is, and what is missing of it
harvest_progress, writing, merging       a harvest into it, and several stores in one
store, models                            it is opened, and used with the models that it is of
pair_notes                               who said what a pair stands for, and who wrote it
order, stream                            in which order pairs come
live_stream, store_stream, tensor_stream where they come from
normalization                            how sources come onto one scale
"""
