package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/fault"
)

// The scripts ask the hidden verb __complete, so that they never go stale:
// its operands are the words typed so far, the last of them unfinished. A shell
// falls back to file names where nothing is printed.
var completionScripts = map[string]string{
	"bash": `_kedge() {
	local IFS=$'\n'
	COMPREPLY=($(kedge __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _kedge kedge
`,
	"zsh": `#compdef kedge
_kedge() {
	local -a found
	found=("${(@f)$(kedge __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n "${found[1]}" ]]; then
		compadd -- "${found[@]}"
	else
		_files
	fi
}
compdef _kedge kedge
`,
	"fish": `function __kedge_complete
	set -l words (commandline -opc) (commandline -ct)
	kedge __complete -- $words[2..-1] 2>/dev/null
end
complete -c kedge -a '(__kedge_complete)'
`,
}

func cmdCompletion(e *env) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a shell's completion script",
		ArgsUsage: "bash|zsh|fish",
		Description: "Load it in a running shell, or install it where the shell looks:\n" +
			"/usr/share/bash-completion/completions/kedge, /usr/share/zsh/site-functions/_kedge,\n" +
			"/usr/share/fish/vendor_completions.d/kedge.fish.",
		UsageText: "source <(kedge completion bash)",
		Action: func(c *cli.Context) error {
			shell, err := oneOperand(c, "the shell")
			if err != nil {
				return err
			}
			script, ok := completionScripts[shell]
			if !ok {
				return fault.New(fault.Usage, "use bash, zsh or fish", "completion: no script for %q", shell)
			}
			return e.write([]byte(script))
		},
	}
}

func cmdComplete(e *env) *cli.Command {
	return &cli.Command{
		Name:   "__complete",
		Hidden: true,
		Usage:  "print what the last word may be completed to",
		Action: func(c *cli.Context) error {
			found := complete(c.App, c.Args().Slice())
			if len(found) == 0 {
				return nil
			}
			return e.write([]byte(strings.Join(found, "\n") + "\n"))
		},
	}
}

// complete returns what the last of words may become.
func complete(app *cli.App, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	typed, last := words[:len(words)-1], words[len(words)-1]
	commands, flags := app.Commands, app.Flags
	for i := 0; i < len(typed); i++ {
		name, _, hasValue := strings.Cut(strings.TrimLeft(typed[i], "-"), "=")
		if strings.HasPrefix(typed[i], "-") {
			f := lookup(slices.Concat(flags, app.Flags), name)
			if f != nil && takesValue(f) && !hasValue {
				if i++; i >= len(typed) {
					return nil // the last word is the flag's value
				}
			}
			continue
		}
		if c := find(commands, typed[i]); c != nil {
			commands, flags = c.Subcommands, slices.Concat(c.Flags, app.Flags)
		}
	}
	var found []string
	offer := func(s string) {
		if strings.HasPrefix(s, last) && !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	if strings.HasPrefix(last, "-") {
		for _, f := range flags {
			offer("--" + f.Names()[0])
		}
		offer("--help")
		return found
	}
	for _, name := range visible(commands) {
		offer(name)
	}
	return found
}
