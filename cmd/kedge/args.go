package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/fault"
)

// commandLine is a command line in the order that the flag parser wants.
type commandLine struct {
	path []*cli.Command // the verb and its sub-verb
	args []string       // global flags, verb, its flags, "--", operands
	help bool
	json bool
}

// arrange puts a command line in order, so that flags work wherever they stand:
// global ones after the verb too, and any of them after an operand. An unknown
// verb or flag and a flag without its value are usage errors.
func arrange(app *cli.App, args []string) (commandLine, error) {
	var line commandLine
	var global, local, operands []string
	commands := app.Commands
	flags := app.Flags
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			operands = append(operands, args[i+1:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			c := find(commands, arg)
			switch {
			case c != nil && len(operands) == 0:
				line.path = append(line.path, c)
				commands, flags = c.Subcommands, c.Flags
			case len(commands) > 0:
				return line, unknownVerb(app, line.path, commands, arg)
			default:
				operands = append(operands, arg)
			}
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if name == "help" || name == "h" {
			line.help = true
			continue
		}
		f, to := lookup(flags, name), &local
		if g := lookup(app.Flags, name); g != nil {
			f, to = g, &global
			line.json = line.json || name == "json"
		}
		if f == nil {
			return line, fault.New(fault.Usage, helpHint(app, line.path), "unknown flag %s", arg)
		}
		*to = append(*to, arg)
		if takesValue(f) && !hasValue {
			if i++; i == len(args) {
				return line, fault.New(fault.Usage, helpHint(app, line.path), "flag %s needs a value", arg)
			}
			*to = append(*to, args[i])
		}
	}
	line.args = global
	for _, c := range line.path {
		line.args = append(line.args, c.Name)
	}
	line.args = append(line.args, local...)
	if len(operands) > 0 {
		line.args = append(append(line.args, "--"), operands...)
	}
	if last := len(line.path) - 1; last >= 0 && len(line.path[last].Subcommands) > 0 && !line.help {
		return line, fault.New(fault.Usage, helpHint(app, line.path), "kedge %s needs one of: %s",
			names(line.path), strings.Join(visible(line.path[last].Subcommands), ", "))
	}
	return line, nil
}

func find(commands []*cli.Command, name string) *cli.Command {
	if i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(name) }); i >= 0 {
		return commands[i]
	}
	return nil
}

func lookup(flags []cli.Flag, name string) cli.Flag {
	if i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) }); i >= 0 {
		return flags[i]
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

func names(path []*cli.Command) string {
	var s []string
	for _, c := range path {
		s = append(s, c.Name)
	}
	return strings.Join(s, " ")
}

func visible(commands []*cli.Command) []string {
	var s []string
	for _, c := range commands {
		if !c.Hidden {
			s = append(s, c.Name)
		}
	}
	return s
}

func helpHint(app *cli.App, path []*cli.Command) string {
	return strings.Join(strings.Fields(app.Name+" "+names(path)+" --help"), " ") + " shows what it takes"
}

func unknownVerb(app *cli.App, path, commands []*cli.Command, got string) error {
	hint := helpHint(app, path)
	best := 3 // further away than this it is another word
	for _, name := range visible(commands) {
		if d := distance(name, got); d < best {
			best, hint = d, "did you mean "+strings.Join(strings.Fields("kedge "+names(path)+" "+name), " ")+"?"
		}
	}
	return fault.New(fault.Usage, hint, "unknown verb %q", strings.TrimSpace(names(path)+" "+got))
}

// distance is the Levenshtein distance of two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
