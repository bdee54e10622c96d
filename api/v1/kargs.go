package v1

// Karg is one kernel argument.
type Karg struct {
	Arg string `json:"arg"` // "key=value" or "key"
	// Owner is whose it is: image (it comes and goes with the image), machine (given
	// at the installation, or by another program), or user (kedge kargs).
	Owner string `json:"owner"`
}

// The owners of kernel arguments.
const (
	KargImage   = "image"
	KargMachine = "machine"
	KargUser    = "user"
)
