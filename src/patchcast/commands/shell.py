"""`patchcast completion`: a script with which a shell completes commands, options and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Words = Mapping[str, Mapping[str, Sequence[str]]]
"""For each command its options, and for each option its values; none if it takes anything."""

BASH = """\
_patchcast() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [ "$COMP_CWORD" = 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}} $before" in
{values}
    esac
    if [ -z "$words" ] && [[ $word == -* ]]; then
      case "${{COMP_WORDS[1]}}" in
{options}
      esac
    fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _patchcast patchcast
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: str, words: Words) -> str:
    """The script for a shell; where it has nothing to say, the shell completes file names.

    >>> script = completion("bash", {"show": {"--seed": [], "--kind": ["a", "b"]}})
    >>> "show --kind') words='a b'" in script.replace('"', "'")
    True
    """
    values = [
        f'      "{command} {option}") words="{" ".join(chosen)}";;'
        for command, options in words.items()
        for option, chosen in options.items()
        if chosen
    ]
    options = [f'        {command}) words="{" ".join(names)}";;' for command, names in words.items()]
    script = BASH.format(commands=" ".join(words), values="\n".join(values), options="\n".join(options))
    return script if shell == "bash" else ZSH + script
