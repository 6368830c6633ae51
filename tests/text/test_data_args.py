import pytest

from sparsify_crosscoder.text.data_args import read_data_args


@pytest.mark.parametrize(
    ("given", "builder", "expected"),
    [
        ("", None, {}),
        ("name=sample-10BT", None, {"name": "sample-10BT"}),
        ("name=003,revision=1e5", None, {"name": "003", "revision": "1e5"}),
        ("streaming=True,num_proc=2", None, {"streaming": True, "num_proc": 2}),
        (r"sep=\t,quoting=3", "csv", {"sep": "\t", "quoting": 3}),
        ("sep=','", "csv", {"sep": ","}),
        ("sep=;,header=None", "csv", {"sep": ";", "header": None}),
        ("header=0,names=['a','b']", "csv", {"header": 0, "names": ["a", "b"]}),
        (
            "header=infer,skip_blank_lines=false",
            "csv",
            {"header": "infer", "skip_blank_lines": False},
        ),
        (
            "sample_by=paragraph,keep_linebreaks=true",
            "text",
            {"sample_by": "paragraph", "keep_linebreaks": True},
        ),
        ("field=data,chunksize=1000", "json", {"field": "data", "chunksize": 1000}),
        ("field=007", "json", {"field": "007"}),
        ("columns=['text'],batch_size=8", "parquet", {"columns": ["text"], "batch_size": 8}),
        ("encoding=latin-1", None, {"encoding": "latin-1"}),
        ("language=en,year=2024,clean=True", None, {"language": "en", "year": 2024, "clean": True}),
        ("data_files=['a.jsonl','b.jsonl']", None, {"data_files": ["a.jsonl", "b.jsonl"]}),
    ],
)
def test_options_have_the_types_of_the_fields_they_are_for(given, builder, expected):
    read = read_data_args(given, builder)
    assert read == expected
    assert [type(value) for value in read.values()] == [type(v) for v in expected.values()]


@pytest.mark.parametrize(
    ("given", "builder", "said"),
    [
        ("trust_remote_code=True", None, "'trust_remote_code' cannot be given"),
        ("split=test", None, "--split"),
        ("path=x", None, "DATASET"),
        ("sepp=;", "csv", "no option 'sepp'.*delimiter"),
        ("sep=;", "json", "read as json have no option 'sep'"),
        ("data_files=x", "text", "no meaning"),
        ("paragraph", None, "'paragraph' is not of the form key=value"),
        ("data_files=a.jsonl,b.jsonl", None, "'b.jsonl' is not .* quotes"),
        ("num_proc=many", None, "'num_proc' must be int, got 'many'"),
        ("chunksize=big", "json", "'chunksize' must be int"),
        ("sample_by=page", "text", "must be one of 'line', 'paragraph', 'document'"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(given, builder, said):
    with pytest.raises(ValueError, match=said) as error:
        read_data_args(given, builder)
    assert str(error.value).startswith("--data_args: ")


def test_a_mapping_keeps_its_values():
    assert read_data_args({"sep": "\t", "quoting": 3}, "csv") == {"sep": "\t", "quoting": 3}
    with pytest.raises(ValueError, match="'sepp'"):
        read_data_args({"sepp": "x"}, "csv")
