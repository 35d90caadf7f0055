"""The endpoints, one file each. They translate HTTP requests to generations, and generations to replies."""

READ = ["GET", "HEAD"]  # methods of read-only routes; a reply to HEAD has the headers of GET and no body
