package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// A verb's cli.Command carries its page: Usage is one line, ArgsUsage the
// operands, Description the text, UsageText the one example.

// helpText is what --help prints: of the program, or of the command at path.
func helpText(app *cli.App, path []*cli.Command) string {
	var b strings.Builder
	if len(path) == 0 {
		fmt.Fprintf(&b, "kedge: %s\n\n%s\n\nUsage: kedge [FLAGS] VERB [FLAGS] [OPERANDS]\n\nVerbs:\n", app.Usage, app.Description)
		b.WriteString(commandTable(app.Commands))
		b.WriteString("\nFlags of every verb:\n" + flagTable(app.Flags))
		b.WriteString("\nExample:\n  kedge switch registry.example/os:stable\n")
		return b.String()
	}
	c := path[len(path)-1]
	fmt.Fprintf(&b, "kedge %s: %s\n\nUsage: %s\n", names(path), c.Usage, synopsis(path))
	if c.Description != "" {
		b.WriteString("\n" + c.Description + "\n")
	}
	if len(c.Subcommands) > 0 {
		b.WriteString("\nVerbs:\n" + commandTable(c.Subcommands))
	}
	if len(c.Flags) > 0 {
		b.WriteString("\nFlags:\n" + flagTable(c.Flags))
	}
	b.WriteString("\nFlags of every verb: kedge --help\n")
	if c.UsageText != "" {
		b.WriteString("\nExample:\n  " + c.UsageText + "\n")
	}
	return b.String()
}

func synopsis(path []*cli.Command) string {
	c := path[len(path)-1]
	s := "kedge " + names(path)
	if len(c.Flags) > 0 {
		s += " [FLAGS]"
	}
	if len(c.Subcommands) > 0 {
		s += " VERB"
	}
	if c.ArgsUsage != "" {
		s += " " + c.ArgsUsage
	}
	return s
}

func commandTable(commands []*cli.Command) string {
	var rows [][2]string
	for _, c := range commands {
		if !c.Hidden {
			rows = append(rows, [2]string{c.Name, c.Usage})
		}
	}
	return table(rows)
}

func flagTable(flags []cli.Flag) string {
	var rows [][2]string
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
			continue
		}
		d := f.(cli.DocGenerationFlag)
		usage := d.GetUsage()
		if def := d.GetDefaultText(); d.TakesValue() && def != "" && def != `""` {
			usage += " (default " + strings.Trim(def, `"`) + ")"
		}
		rows = append(rows, [2]string{flagSynopsis(f), usage})
	}
	return table(rows)
}

// flagSynopsis is a flag with its value's name, which the usage text gives in
// backquotes as package flag has it; flagTable drops the quotes.
func flagSynopsis(f cli.Flag) string {
	s := "--" + f.Names()[0]
	if d := f.(cli.DocGenerationFlag); d.TakesValue() {
		s += " " + valueName(d.GetUsage())
	}
	return s
}

func valueName(usage string) string {
	if _, rest, ok := strings.Cut(usage, "`"); ok {
		name, _, _ := strings.Cut(rest, "`")
		return name
	}
	return "VALUE"
}

func table(rows [][2]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "  %s\t%s\n", r[0], strings.ReplaceAll(r[1], "`", ""))
	}
	_ = w.Flush() // a strings.Builder takes everything
	return b.String()
}
