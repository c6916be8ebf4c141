package login

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"

	"golang.org/x/net/html"
)

const (
	maxPageBytes = 1 << 20
	maxForms     = 6
)

// Script signs in without a browser, for demonstrations and tests: it opens the URL, fills the forms of
// the provider (name and password, then consent) and submits them until the redirect to the callback was
// followed. It knows no provider in particular, only HTML.
func Script(ctx context.Context, ca []byte, start, user, password string) error {
	hc, err := HTTPClient(ca)
	if err != nil {
		return fmt.Errorf("scripted sign-in: %w", err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return fmt.Errorf("scripted sign-in: %w", err)
	}
	hc.Jar = jar
	var final string
	hc.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if len(via) > 15 {
			return errors.New("too many redirects")
		}
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, start, nil)
	if err != nil {
		return fmt.Errorf("scripted sign-in: %w", err)
	}
	passwordSent := false
	for range maxForms {
		resp, err := hc.Do(req)
		if err != nil {
			return fmt.Errorf("scripted sign-in: %w", stripURL(err))
		}
		page, err := io.ReadAll(io.LimitReader(resp.Body, maxPageBytes))
		resp.Body.Close()
		if err != nil {
			return fmt.Errorf("scripted sign-in: %w", err)
		}
		at := resp.Request.URL
		if at.Path == callbackPath && isLoopback(at) {
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("scripted sign-in: the callback answered HTTP %d", resp.StatusCode)
			}
			return nil
		}
		final = at.Scheme + "://" + at.Host + at.Path
		f, err := findForm(page)
		if err != nil {
			return fmt.Errorf("scripted sign-in: at %s (HTTP %d): %w", final, resp.StatusCode, err)
		}
		if f.passwordField != "" {
			if passwordSent {
				return fmt.Errorf("scripted sign-in: %s did not take name and password", final)
			}
			passwordSent = true
			f.values.Set(f.passwordField, password)
			if f.userField != "" {
				f.values.Set(f.userField, user)
			}
		}
		if req, err = f.request(ctx, at); err != nil {
			return fmt.Errorf("scripted sign-in: %w", err)
		}
	}
	return fmt.Errorf("scripted sign-in: more than %d forms, last at %s", maxForms, final)
}

func isLoopback(u *url.URL) bool { return u.Hostname() == "127.0.0.1" || u.Hostname() == "::1" }

// stripURL drops the URL that net/http puts into its errors: it holds codes and states.
func stripURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

type form struct {
	action, method           string
	values                   url.Values
	userField, passwordField string
}

// findForm reads the page's first form that can be submitted.
func findForm(page []byte) (*form, error) {
	doc, err := html.Parse(strings.NewReader(string(page)))
	if err != nil {
		return nil, fmt.Errorf("reading the page: %w", err)
	}
	var forms []*form
	var walk func(n *html.Node, f *form)
	walk = func(n *html.Node, f *form) {
		if n.Type == html.ElementNode {
			switch n.Data {
			case "form":
				f = &form{action: attr(n, "action"), method: strings.ToUpper(attr(n, "method")), values: url.Values{}}
				forms = append(forms, f)
			case "input":
				if f != nil {
					f.input(n)
				}
			}
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c, f)
		}
	}
	walk(doc, nil)
	for _, f := range forms {
		if f.passwordField != "" {
			return f, nil
		}
	}
	for _, f := range forms {
		if f.method == http.MethodPost {
			return f, nil
		}
	}
	return nil, errors.New("no form to fill in")
}

func (f *form) input(n *html.Node) {
	name, kind, value := attr(n, "name"), strings.ToLower(attr(n, "type")), attr(n, "value")
	if name == "" {
		return
	}
	switch kind {
	case "password":
		f.passwordField = name
	case "", "text", "email":
		if f.userField == "" {
			f.userField = name
		}
		f.values.Set(name, value)
	case "submit", "button", "image", "reset", "file":
	case "checkbox", "radio":
		if has(n, "checked") {
			f.values.Add(name, value)
		}
	default:
		f.values.Add(name, value)
	}
}

func (f *form) request(ctx context.Context, page *url.URL) (*http.Request, error) {
	target, err := page.Parse(f.action)
	if err != nil {
		return nil, fmt.Errorf("the form's action: %w", err)
	}
	if target.Scheme != page.Scheme || target.Host != page.Host {
		return nil, fmt.Errorf("the form of %s would be sent to %s", page.Host, target.Host)
	}
	if f.method != http.MethodPost {
		target.RawQuery = f.values.Encode()
		return http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), strings.NewReader(f.values.Encode()))
	if err == nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req, err
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func has(n *html.Node, name string) bool {
	for _, a := range n.Attr {
		if a.Key == name {
			return true
		}
	}
	return false
}
