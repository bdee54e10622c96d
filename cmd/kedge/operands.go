package main

import (
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/fault"
)

// withoutOperands makes the action of a verb that takes none.
func withoutOperands(run cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			return fault.New(fault.Usage, c.Command.HelpName+" --help shows what it takes", "%s: unexpected operand %q", c.Command.Name, c.Args().First())
		}
		return run(c)
	}
}

// oneOperand returns the only operand, which the message calls what.
func oneOperand(c *cli.Context, what string) (string, error) {
	hint := c.Command.HelpName + " --help shows what it takes"
	switch {
	case c.NArg() == 0 || c.Args().First() == "":
		return "", fault.New(fault.Usage, hint, "%s: %s is missing", c.Command.Name, what)
	case c.NArg() > 1:
		return "", fault.New(fault.Usage, hint, "%s: unexpected operand %q", c.Command.Name, c.Args().Get(1))
	}
	return c.Args().First(), nil
}

func indexOperand(c *cli.Context) (int, error) {
	s, err := oneOperand(c, "INDEX")
	if err != nil {
		return 0, err
	}
	i, err := strconv.Atoi(s)
	if err != nil || i < 0 {
		return 0, fault.New(fault.Usage, "kedge status shows the index of each deployment", "%s: %q is no index", c.Command.Name, s)
	}
	return i, nil
}
