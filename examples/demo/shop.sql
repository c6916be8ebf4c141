-- Sample data of the demo: a small shop with personal fields. All people are invented.
CREATE TABLE customers (
    id    int PRIMARY KEY,
    name  text NOT NULL,
    email text NOT NULL,
    phone text NOT NULL
);
CREATE TABLE orders (
    id          int PRIMARY KEY,
    customer_id int NOT NULL REFERENCES customers (id),
    placed      date NOT NULL,
    total_cents int NOT NULL,
    status      text NOT NULL CHECK (status IN ('paid', 'refund requested', 'refunded'))
);
INSERT INTO customers VALUES
    (1, 'Ines Albrecht',  'ines.albrecht@example.com',  '+49 30 5550101'),
    (2, 'Tomas Okafor',   'tomas.okafor@example.net',   '+44 20 5550102'),
    (3, 'Mai Lindqvist',  'mai.lindqvist@example.org',  '+46 8 5550103'),
    (4, 'Rahul Banerjee', 'rahul.banerjee@example.com', '+91 33 5550104'),
    (5, 'Carla Nunes',    'carla.nunes@example.net',    '+351 21 5550105');
INSERT INTO orders VALUES
    (101, 1, '2026-07-03', 12900, 'paid'),
    (102, 2, '2026-07-19',  4550, 'refund requested'),
    (103, 3, '2026-08-02', 23000, 'paid'),
    (104, 2, '2026-08-21',  8900, 'refund requested'),
    (105, 5, '2026-09-11',  1999, 'refund requested'),
    (106, 4, '2026-09-28', 74000, 'paid');
