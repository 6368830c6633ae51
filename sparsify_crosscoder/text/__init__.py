"""From a text to windows of aligned tokens. On its way a text passes through, in this order:

data_args, data_files, data_faults, open_dataset    a dataset is opened, whatever keeps it
text_columns, messages, texts                       its texts and conversations are read
templates, lent_templates, surviving, chat          conversations become what a model is given
text_batch, spelling, token_ends, tokenization      each source's tokens, and where they end
pairing, alignment (algorithm1: the paper's)        tokens that end at the same place are paired
answers                                             which prompts the models answer, and the texts
roles                                               who said what a pair stands for
text_loss, loss_reasons, windows                    texts are cut into windows of pairs
alignment_report, overlap                           what became of the texts; which were seen
"""
