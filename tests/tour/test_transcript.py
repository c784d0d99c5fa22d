"""What the tour's test takes for a command, and for the same output."""

from tests.tour.transcript import Step, steps

PAGE = """
```sh
make run
```
```console
$ X=1
$ curl "$X" \\
>   --data 'a
> b'
{"position":1}
```
text
```console
$ true
```
"""


def test_commands_and_their_outputs_are_found() -> None:
    assert [(step.command, step.shown) for step in steps(PAGE)] == [
        ("X=1", []),
        ("curl \"$X\" \\\n  --data 'a\nb'", ['{"position":1}']),
        ("true", []),
    ]


def test_an_ellipsis_is_anything_and_a_position_any_position() -> None:
    step = Step("", ['{"a":…,"position":1}', "second (line)"])
    assert step.matches('{"a":[1,2],"position":977}\nsecond (line)\n')
    assert not step.matches('{"a":[1,2],"position":x}\nsecond (line)\n')
    assert not step.matches('{"a":1,"position":1}\nsecond line\n')
    assert not step.matches('{"a":1,"position":1}')


def test_where_nothing_is_shown_anything_will_do() -> None:
    assert Step("make run").matches("whatever")
